"""`python -m json_repl_session`: the name existing Flow backends spawn."""

import runpy

runpy.run_module("json_repl", run_name="__main__", alter_sys=True)
