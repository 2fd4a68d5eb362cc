"""What follows -o."""

import pytest

from kaifs.base.errors import MountOptionError
from kaifs.daemon.options import parse_options


def test_every_option_of_the_surface_is_known() -> None:
    options = parse_options(
        [
            "rw,agent=bot,view=@snapshots/s-abc,allow_other,default_permissions,uid=0,gid=0",
            "transport=pyfuse3,commit=2.5,compress=zstd:7,time=24h,busypoll=100,latency=auto",
            "cache=64M,noatime,nodev,nosuid,noexec,defaults",
            "_netdev,nofail,x-systemd.automount,user,noauto,",
        ]
    )

    assert (options.agent, options.view) == ("bot", "@snapshots/s-abc")
    assert options.allow_other is True
    assert (options.uid, options.gid) == (0, 0)
    assert (options.commit_s, options.zstd_level, options.cache_size) == (2.5, 7, 64 << 20)
    assert options.mount_flags == ("noatime", "nodev", "nosuid", "noexec")
    assert not options.read_only


def test_later_options_win() -> None:
    options = parse_options(["ro,rw,noatime,relatime,compress=zstd,compress=none,nodev,dev"])

    assert not options.read_only
    assert options.mount_flags == ("relatime", "dev")
    assert options.zstd_level is None


def test_a_sealed_view_is_read_only() -> None:
    assert parse_options(["agent=bot,view=@versions/1.0.0"]).read_only


@pytest.mark.parametrize(
    "text",
    [
        *("colour=blue", "nonsense", "ro=1", "commit", "commit=", "commit=-1", "commit=nan"),
        *("commit=0", "commit=1e3", "transport=nfs", "view=current"),
        *("agent=s-x", "agent=../x", "agent=bot,view=@versions/1", "agent=bot,view=@time/x"),
        *("agent=bot,view=current/sub", "compress=gzip", "compress=zstd:0", "compress=zstd:99"),
        *("uid=nobody-of-that-name", "uid=4294967295", "cache=1.5", "busypoll=x", "latency=low"),
        *("time=soon", "compress=zstd:", "uid=", "uid=²"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(MountOptionError) as caught:
        parse_options([text])

    assert caught.value.code == "E134"
