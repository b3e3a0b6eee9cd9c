/* A Modbus server of libmodbus: peer rtu DEVICE | tcp PORT
 * The same registers as peer.py, and holding registers that misbehave, as those
 * of libmodbus' own unit-test server do:
 * 400 busy, 401 answers as unit 2, 402 answers after 700 ms, 403 takes 5 ms a
 * byte (rtu), 416 + n answers with exception n. */
#include <errno.h>
#include <modbus.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* odd answers the registers that misbehave; 0: q is none of those. */
static int odd(modbus_t *ctx, const uint8_t *q, int n, int rtu, modbus_mapping_t *map)
{
	int h = modbus_get_header_length(ctx), addr = q[h + 1] << 8 | q[h + 2], i;
	uint8_t other[] = { 2, 3, 2, 0, 7 }, slow[] = { 1, 3, 2, 0, 7, 0xF9, 0x86 };

	if (q[h] != 3)
		return 0;
	if (addr == 400)
		modbus_reply_exception(ctx, q, MODBUS_EXCEPTION_SLAVE_OR_SERVER_BUSY);
	else if (addr == 401)
		modbus_send_raw_request(ctx, other, sizeof other);
	else if (addr == 402)
		usleep(700000), modbus_reply(ctx, q, n, map);
	else if (addr == 403 && rtu)
		for (i = 0; i < (int)sizeof slow; i++) {
			if (write(modbus_get_socket(ctx), slow + i, 1) != 1)
				return 1;
			usleep(5000);
		}
	else if (addr > 416 && addr < 428)
		modbus_reply_exception(ctx, q, addr - 416);
	else
		return 0;
	return 1;
}

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
	map = modbus_mapping_new(2000, 2000, 500, 500);
	if (!ctx || !map)
		return 1;
	for (i = 0; i < 500; i++)
		map->tab_registers[i] = map->tab_input_registers[i] = i + 100;
	for (i = 0; i < 2000; i++)
		map->tab_bits[i] = map->tab_input_bits[i] = i % 3 == 0;
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
				odd(ctx, query, n, rtu, map) || modbus_reply(ctx, query, n, map);
			else if (n < 0 && !rtu)
				break;
			else if (n < 0 && errno != EMBBADCRC && errno != EMBBADDATA && errno != ETIMEDOUT)
				return 0;
		}
	}
}
