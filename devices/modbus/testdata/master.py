#!/usr/bin/python3
"""A Modbus master of pymodbus 3.0 that asks without a pause: master.py DEVICE BAUD REGISTERS"""
import sys

from pymodbus.client import ModbusSerialClient

client = ModbusSerialClient(port=sys.argv[1], baudrate=int(sys.argv[2]), parity="N", timeout=1)
client.connect()
while True:
    client.read_holding_registers(0, int(sys.argv[3]), slave=1)
