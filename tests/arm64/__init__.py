"""What runs on arm64, tried on another machine with QEMU's user mode (`make arm64`). QEMU executes the programs; the
kernel is this machine's, so nothing here says how an arm64 kernel behaves.
"""
