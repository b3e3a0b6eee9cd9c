// Package vm holds the tests in whole virtual machines: Debian with systemd under
// qemu's software emulation, the package installed by apt, a simulated meter on
// an emulated FTDI adapter, clients outside on a forwarded port. They take
// minutes to an hour, need root, Debian and some GB of disk, and are not for CI:
//
//	sudo BUSGATE_VM=1 go test -v -timeout 2h -run TestFirstReading ./packaging/vm
//	sudo BUSGATE_VM=1 go test -v -timeout 2h -run TestTrouble ./packaging/vm
//	sudo BUSGATE_VM=1 go test -v -timeout 2h -run TestPowerCuts ./packaging/vm -cuts 50
//	sudo BUSGATE_VM=1 go test -v -timeout 2h -run TestRaspberryPi ./packaging/vm
//
// Besides the apt-get line of .ci/package they need qemu-system-x86,
// qemu-system-arm, e2fsprogs, cpio and kmod. What the machines boot is made once
// and kept in $BUSGATE_CACHE.
//
//	meter    the Modbus meter
//	disk     a disk with a volatile cache, which a power cut empties
//	machine  one run of qemu and its console
//	vm       first reading, Raspberry Pi       trouble  what happens over the years
//	cuts     power cuts of an installed Debian assets   kernel, initramfs and root
//	                                                    file system, by script
//
// The software emulation is on purpose: where this computer is a virtual machine
// itself, /dev/kvm may be there and hang Debian's kernel.
//
// All of it is in test files: nothing else may use it.
package vm
