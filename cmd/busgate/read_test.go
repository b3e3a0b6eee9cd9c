package main

import (
	"strings"
	"testing"

	"busgate/devices/sim"
)

// readServer is a Modbus TCP server with a sensor at unit 2.
func readServer(t *testing.T) (addr, file string) {
	t.Helper()
	u := sim.NewUnit(2)
	u.Set(sim.Input, 1, 0x00B8, 0x0262)
	u.SetFloat32(sim.Input, 10, 230.4)
	u.Set(sim.Holding, 0x1000, 0x6275, 0x7367, 0x6174, 0x6500)
	u.SetBit(sim.Coil, 3, true)
	u.SetBit(sim.Coil, 4, false)
	srv, err := sim.ListenTCP("127.0.0.1:0", 1, u)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, srv.Run)
	return srv.Addr(), mapWith(t, "[bus.roof]\ntcp = \""+srv.Addr()+"\"\ntimeout = \"50ms\"\n"+
		"[device.cellar]\nbus = \"roof\"\nunit_id = 2\nprofile = \"xy-md02\"\n[device.cellar.points]\nlimit = { holding = 7, type = \"uint16\" }\n"+
		"[device.attic]\nbus = \"roof\"\nunit_id = 9\nprofile = \"xy-md02\"\n")
}

func TestRead(t *testing.T) {
	addr, file := readServer(t)
	for _, c := range []struct {
		args string
		code int
		want string // the whole of stdout, or a part of stderr
	}{
		{"roof 2 input 1 2", exitOK, "input 1  0x00B8  184\ninput 2  0x0262  610\n"},
		{"HOST 2 input 1", exitOK, "input 1  0x00B8  184\n"},
		{"roof 2 input 0x01 2 --hex", exitOK, "bytes 00 B8 02 62\n"},
		{"roof 2 input 10 --type float32", exitOK, "input 10  230.4\n"},
		{"roof 2 input 10 2 --type float32 --order CDAB", exitOK, "input 10  2.718469e+23\n"},
		{"roof 2 input 1 2 --type int16", exitOK, "input 1  184\ninput 2  610\n"},
		{"roof 2 holding 0x1000 4 --type string", exitOK, "holding 4096  busgate\n"},
		{"roof 2 coil 3 2", exitOK, "coil 3  on\ncoil 4  off\n"},
		{"roof 2 input 1 2 --json", exitOK, `{"bus":"roof","unit":2,"table":"input","addr":1,"bytes":"00B80262","registers":[184,610]}` + "\n"},
		{"roof 2 coil 3 2 --json", exitOK, `{"bus":"roof","unit":2,"table":"coil","addr":3,"bits":[true,false]}` + "\n"},
		{"cellar", exitOK, "temperature  18.4 °C\nhumidity     61.0 %\nlimit        exception 2, illegal data address\n"},
		{"cellar.humidity", exitOK, "humidity  61.0 %\n"},
		{"cellar --json", exitOK, `{"device":"cellar","values":{"humidity":61.0,"temperature":18.4},"errors":{"limit":"exception 2, illegal data address"}}` + "\n"},
		{"cellar.limit", exitRefused, "limit  exception 2, illegal data address\n"},
		{"attic", exitNoReply, "busgate read: unit 9 on roof: no answer (2 tries of 50 ms)"},
		{"celar", exitFailed, "there is no device `celar` in "},
		{"celar", exitFailed, "(did you mean `cellar`?)"},
		{"cellar.humidty", exitFailed, "device `cellar` has no point `humidty` (did you mean `humidity`?)"},
		{"cellar --try", exitUsage, "knows only --json for a device of the map"},
		{"roof 2 input 0", exitRefused, "busgate read: unit 2 on roof refuses: exception 2, illegal data address"},
		{"roof 5 input 0", exitNoReply, "busgate read: unit 5 on roof: no answer (2 tries of 50 ms)"},
		{"127.0.0.1:1 5 input 0", exitNoReply, "127.0.0.1:1 does not answer (connection refused)"},
		{"/dev/ttyUSB77 5 input 0", exitFailed, "there is no /dev/ttyUSB77"},
		{"roof 2 input", exitUsage, "takes DEVICE[.POINT] or WHERE UNIT TABLE ADDR [N]"},
		{"/dev/ttyUSB77 0 input 0", exitUsage, `cannot use unit "0"`},
		{"roof 300 input 0", exitUsage, `cannot use unit "300"`},
		{"roof 2 inputs 0", exitUsage, `cannot use table "inputs"`},
		{"roof 2 input 65536", exitUsage, `cannot use address "65536"`},
		{"roof 2 input 65535 2", exitUsage, "addresses end at 65535"},
		{"roof 2 input 0 126", exitUsage, "cannot read 126 of them; write 1 to 125"},
		{"roof 2 input 0 3 --type uint32", exitUsage, "cannot read 3 registers as uint32, which takes 2"},
		{"roof 2 input 0 --type number", exitUsage, `cannot read a input as "number"`},
		{"roof 2 coil 0 --try", exitUsage, "knows --try for registers"},
		{"roof 2 input 0 --order ABDC", exitUsage, "cannot use --order ABDC"},
		{"roof 2 input 0 --baud 9600", exitUsage, "--baud and --format"},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := strings.Fields(strings.Replace(c.args, "HOST", addr, 1))
			code, out, errs := call(t, append([]string{"read", "--config", file}, args...)...)
			if code != c.code || c.code == exitOK && (out != c.want || errs != "") || !strings.Contains(out+errs, c.want) {
				t.Errorf("exit %d\n%s%s\nwant %d\n%s", code, out, errs, c.code, c.want)
			}
		})
	}
}

func TestReadOfADeviceNeedsADeviceMap(t *testing.T) {
	if code, _, errs := call(t, "read", "grid", "--config", "/none/busgate.toml"); code != exitConfig || !strings.Contains(errs, "busgate check /none/busgate.toml") {
		t.Errorf("exit %d %s", code, errs)
	}
}

func TestReadTriesEveryType(t *testing.T) {
	_, file := readServer(t)
	code, out, errs := call(t, "read", "roof", "2", "input", "1", "2", "--try", "--config", file)
	for _, want := range []string{
		"bytes 00 B8 02 62\n",
		"uint16        184, 610\n",
		"uint16 x0.1   18.4, 61.0   <- looks like °C and %\n",
		"uint32 ABCD   12059234\n",
		"float32 BADC  ",
	} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q in\n%s%s", code, want, out, errs)
		}
	}
	if n := strings.Count(out, "<-"); n != 1 {
		t.Errorf("%d lines are marked\n%s", n, out)
	}
}

func TestReadOverASerialLine(t *testing.T) {
	port := terminal(t, sim.NewXYMD02(2, 1))
	code, out, errs := call(t, "read", port, "2", "input", "1", "--type", "int16", "--baud", "57600", "--format", "8E1", "--config", "/none")
	if code != exitOK || !strings.HasPrefix(out, "input 1  1") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}
