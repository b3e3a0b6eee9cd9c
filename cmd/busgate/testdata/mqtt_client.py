"""A client of paho-mqtt for the tests: obeys lines on stdin, notes on stdout.

mqtt_client.py pub ID TOPIC QOS WINDOW
mqtt_client.py sub ID FILTER

    connect PORT   resume the session; "connected 0" or "connected 1" (session
                   present), then, of a publisher, "idle" once nothing is open
    go             publish numbers from now on, each third retained
    subscribe      to FILTER at QoS 2; "subscribed"
    leave          disconnect; "left"

"ack N": PUBACK or PUBCOMP for number N. "got TOPIC PAYLOAD": a message that is
not the copy of a retained one. "gone": there is no connection (any more).
"""
import os
import select
import sys

import paho.mqtt.client as mqtt

kind, name, topic = sys.argv[1:4]
qos, window = (int(sys.argv[4]), int(sys.argv[5])) if kind == "pub" else (2, 0)
client = mqtt.Client(client_id=name, clean_session=False)
client.max_inflight_messages_set(1000)
number, going, leaving, there = 0, False, False, False
open_ids = {}  # of messages that are not acknowledged, with their numbers


def say(*words):
    sys.stdout.write(" ".join(words) + "\n")


def publish():
    global number
    while going and len(open_ids) < window:
        number += 1
        body = "%d %s" % (number, "x" * (number * 7919 % 900))
        open_ids[client.publish(topic, body, qos, retain=number % 3 == 0).mid] = number


def on_connect(c, u, flags, rc):
    say("connected", str(flags["session present"]))
    if kind == "pub" and not open_ids:
        say("idle")


def on_publish(c, u, mid):
    say("ack", str(open_ids.pop(mid)))
    if going:
        return publish()
    if not open_ids:
        say("idle")


def on_subscribe(c, u, mid, granted):
    say("subscribed")


def on_message(c, u, m):
    if not m.retain:
        say("got", m.topic, m.payload.decode()[:40])


def on_disconnect(c, u, rc):
    global going, leaving, there
    if there:  # it comes twice when an answer cannot be sent
        say("left" if leaving else "gone")
    going, leaving, there = False, False, False


def obey(words):
    global going, leaving, there
    if words[0] == "connect":
        for m in client._out_messages.values():
            # paho-mqtt 1.6 forgets that a PUBREL is due, and sends the PUBLISH
            # again, when a connection ended before its CONNACK.
            if m.state == mqtt.mqtt_ms_resend_pubrel:
                m.state = mqtt.mqtt_ms_wait_for_pubcomp
        try:
            there = True
            client.connect("127.0.0.1", int(words[1]))
        except OSError:
            there = False
            say("gone")
    elif words[0] == "go":
        going = True
        publish()
    elif words[0] == "subscribe":
        client.subscribe(topic, 2)
    elif words[0] == "leave":
        leaving = True
        client.disconnect()


client.on_connect, client.on_disconnect = on_connect, on_disconnect
client.on_publish, client.on_subscribe, client.on_message = on_publish, on_subscribe, on_message
text = b""
while True:
    sys.stdout.flush()
    wire = client.socket()
    reads = [0] + ([wire] if wire else [])
    reads, writes, _ = select.select(reads, [wire] if wire and client.want_write() else [], [], 1)
    if 0 in reads:
        more = os.read(0, 4096)
        if not more:
            sys.exit(0)
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            obey(line.decode().split())
    if client.socket() is wire and wire in reads:
        client.loop_read()
    if client.socket() is wire and wire in writes:
        client.loop_write()
    client.loop_misc()
