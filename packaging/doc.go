// Package packaging turns the program into something that a stranger installs
// on a Raspberry Pi and forgets: .deb files for amd64, arm64 and armhf (ARMv6,
// so that a Zero and a 1 run it), the systemd unit, manuals and completion.
//
//	go run ./packaging/mkdeb     builds the packages into dist/
//	packaging/mkrepo             lays .deb files out as an apt repository
//
//	debian/      what is shipped as it stands, and the maintainer scripts
//	mkdeb/       the writer of .deb files; manual and completion come from
//	             the program's own help, the conffile from the annotated
//	             example of the room config
//	checks/      one command a rung, cheap ones first: lint, emulated,
//	             chroot, nspawn; minutes each and not in CI: lint-in (the
//	             lintian of another release), reproduce (all compiled anew)
//	vm/          whole virtual machines: a meter on a serial port, power
//	             cuts, an emulated Raspberry Pi 3
//
// It imports nothing of the rooms above it and nothing imports it: it runs the
// program as anybody would. It is not for Docker images, self-update (apt does
// that) or questions at installation (the file is the truth).
package packaging
