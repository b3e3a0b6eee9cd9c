#!/usr/bin/python3
"""A Modbus server of pymodbus 3.0:

    peer.py rtu DEVICE | ascii DEVICE | tcp PORT | udp PORT | rtu-tcp PORT | tls PORT CERT KEY CLIENT

CLIENT is the certificate that a client has to show.

Unit 1. Holding and input register a hold a + 100, coil and discrete input a
hold 1 where a is a multiple of 3; registers 0 to 499, bits 0 to 1999.
"""
import ssl
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartSerialServer, StartTcpServer, StartTlsServer, StartUdpServer
from pymodbus.transaction import ModbusAsciiFramer, ModbusRtuFramer, ModbusSocketFramer

words = [a + 100 for a in range(500)]
bits = [a % 3 == 0 for a in range(2000)]
unit = ModbusSlaveContext(
    di=ModbusSequentialDataBlock(0, list(bits)), co=ModbusSequentialDataBlock(0, list(bits)),
    hr=ModbusSequentialDataBlock(0, list(words)), ir=ModbusSequentialDataBlock(0, list(words)), zero_mode=True)
context = ModbusServerContext(slaves={1: unit}, single=False)
kind, where = sys.argv[1], sys.argv[2]
if kind == "rtu":
    StartSerialServer(context=context, framer=ModbusRtuFramer, port=where, baudrate=19200, timeout=1)
elif kind == "ascii":
    StartSerialServer(context=context, framer=ModbusAsciiFramer, port=where, baudrate=19200, timeout=1)
elif kind == "udp":
    StartUdpServer(context=context, address=("127.0.0.1", int(where)))
elif kind == "rtu-tcp":
    StartTcpServer(context=context, framer=ModbusRtuFramer, address=("127.0.0.1", int(where)))
elif kind == "tls":
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[3], sys.argv[4])
    tls.load_verify_locations(sys.argv[5])
    tls.verify_mode = ssl.CERT_REQUIRED
    # what Modbus/TCP Security prescribes inside TLS is the header of Modbus TCP;
    # pymodbus has none there unless it is told so
    StartTlsServer(context=context, framer=ModbusSocketFramer, address=("127.0.0.1", int(where)), sslctx=tls)
else:
    StartTcpServer(context=context, address=("127.0.0.1", int(where)))
