"""Sidestep on Debian's kernels, each booted under QEMU without KVM: `python -m tests.kernels`."""
