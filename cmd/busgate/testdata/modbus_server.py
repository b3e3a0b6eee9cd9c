"""A Modbus server of pymodbus for the tests: rtu DEVICE BAUD or tcp PORT.

Unit 1. Input registers 0..9 hold float32 values 230.0, 1.5, ... in ABCD order;
input registers 100..101 are a uint32 that counts up with each read, so that a
test can tell one round from the next. Holding registers and coils take writes.
"""
import asyncio
import struct
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartAsyncSerialServer, StartAsyncTcpServer
from pymodbus.transaction import ModbusRtuFramer


class Counting(ModbusSequentialDataBlock):
    """Input registers whose number 100 counts reads."""

    count = 0

    def getValues(self, address, count=1):
        if address <= 100 < address + count:
            Counting.count += 1
            self.values[100:102] = [Counting.count >> 16, Counting.count & 0xFFFF]
        return super().getValues(address, count)


def floats(*values):
    out = []
    for v in values:
        out += struct.unpack(">HH", struct.pack(">f", v))
    return out


async def main():
    registers = floats(230.0, 1.5, 345.25, 50.0, -12.5)
    registers += [0] * (200 - len(registers))
    unit = ModbusSlaveContext(
        di=ModbusSequentialDataBlock(0, [0, 1] * 8),
        co=ModbusSequentialDataBlock(0, [0] * 16),
        hr=ModbusSequentialDataBlock(0, [0] * 200),
        ir=Counting(0, registers),
        zero_mode=True,
    )
    context = ModbusServerContext(slaves={1: unit}, single=False)
    if sys.argv[1] == "rtu":
        await StartAsyncSerialServer(
            context=context, framer=ModbusRtuFramer, port=sys.argv[2], baudrate=int(sys.argv[3]),
            bytesize=8, parity="N", stopbits=1, timeout=1)
    else:
        await StartAsyncTcpServer(context=context, address=("127.0.0.1", int(sys.argv[2])))


asyncio.run(main())
