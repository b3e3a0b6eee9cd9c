#!/usr/bin/python3
"""A Modbus server of pymodbus 3.0: peer.py rtu DEVICE | tcp PORT

Unit 1. Holding and input register a hold a + 100, coil and discrete input a
hold 1 where a is a multiple of 3; registers 0 to 499, bits 0 to 1999.
"""
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartSerialServer, StartTcpServer
from pymodbus.transaction import ModbusRtuFramer

words = [a + 100 for a in range(500)]
bits = [a % 3 == 0 for a in range(2000)]
unit = ModbusSlaveContext(
    di=ModbusSequentialDataBlock(0, list(bits)), co=ModbusSequentialDataBlock(0, list(bits)),
    hr=ModbusSequentialDataBlock(0, list(words)), ir=ModbusSequentialDataBlock(0, list(words)), zero_mode=True)
context = ModbusServerContext(slaves={1: unit}, single=False)
if sys.argv[1] == "rtu":
    StartSerialServer(context=context, framer=ModbusRtuFramer, port=sys.argv[2], baudrate=19200, timeout=1)
else:
    StartTcpServer(context=context, address=("127.0.0.1", int(sys.argv[2])))
