/* A Modbus server of libmodbus: peer rtu DEVICE | tcp PORT
 * The same registers as peer.py. */
#include <errno.h>
#include <modbus.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rtu, s = -1, n, i;
	modbus_t *ctx;
	modbus_mapping_t *map;
	uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];

	if (argc < 3)
		return 2;
	rtu = strcmp(argv[1], "rtu") == 0;
	ctx = rtu ? modbus_new_rtu(argv[2], 19200, 'N', 8, 1) : modbus_new_tcp("127.0.0.1", atoi(argv[2]));
	map = modbus_mapping_new(500, 500, 500, 500);
	if (!ctx || !map)
		return 1;
	for (i = 0; i < 500; i++) {
		map->tab_registers[i] = map->tab_input_registers[i] = i + 100;
		map->tab_bits[i] = map->tab_input_bits[i] = i % 3 == 0;
	}
	modbus_set_slave(ctx, 1);
	if (rtu) {
		if (modbus_connect(ctx))
			return 1;
	} else if ((s = modbus_tcp_listen(ctx, 1)) < 0) {
		return 1;
	}
	for (;;) {
		if (!rtu && modbus_tcp_accept(ctx, &s) < 0)
			return 1;
		for (;;) {
			n = modbus_receive(ctx, query);
			if (n > 0)
				modbus_reply(ctx, query, n, map);
			else if (n < 0 && !rtu)
				break;
			else if (n < 0 && errno != EMBBADCRC && errno != EMBBADDATA && errno != ETIMEDOUT)
				return 0;
		}
	}
}
