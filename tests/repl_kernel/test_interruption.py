"""How what runs is made to stop, where signals meet forks, and where everything stalls."""

from __future__ import annotations

from tests.repl_kernel.timeline_world import World


def test_an_interrupt_that_comes_while_the_code_forks_is_told(world: World) -> None:
    outcome = world.run(
        "import ctypes, functools, os, signal\n"
        "interrupt = functools.partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGINT)  # in C alone\n"
        "os.register_at_fork(before=interrupt)\n"
        "try:\n    if not os.fork(): os._exit(0)\n    print('lost')\n"
        "except KeyboardInterrupt:\n    print('told')\n"
        "pid, status = os.wait()"
    )
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "told\n", "")
