"""`python -m json_repl_session`: what existing Flow backends spawn; the same as `python -m json_repl`."""

__import__("runpy").run_module("json_repl", run_name="__main__", alter_sys=True)
