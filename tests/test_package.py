import ttfs_triton


def test_package_has_a_version_and_its_layers() -> None:
    assert ttfs_triton.__version__
    assert ttfs_triton.nn.DFTLinear.__name__ == "DFTLinear"
