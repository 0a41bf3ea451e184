from sidestep.node.certificates.swap import swap_devices

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_what_the_machine_swaps_to(tmp_path):
    swaps = tmp_path / "swaps"
    assert swap_devices(swaps) == ()
    swaps.write_text(HEAD)
    assert swap_devices(swaps) == ()
    swaps.write_text(
        HEAD
        + "/dev/sda2                               partition\t1998844\t\t0\t\t-2\n"
        + "/swap\\040file                           file\t\t1048572\t\t12\t\t-3\n"
        + "/dev/zram0                              partition\t1048572\t\t12\t\t100\n"
    )
    assert swap_devices(swaps) == ("/dev/sda2", "/swap\\040file")
