"""Source code of fake wandb modules: they have what the tracker calls, and do nothing."""

FAKE_SETTINGS = """
    class Settings:
        model_fields = {}
    def setup(settings): pass
    def teardown(exit_code=0): pass
"""
FAKE_RUN = """
    class Run:
        summary = {}
        class settings:
            sync_dir = "run/wandb/offline-run"
        def define_metric(self, *args, **kwargs): pass
        def log(self, row): pass
        def finish(self, exit_code): pass
    def init(**kwargs): return Run()
    def __getattr__(name):  # tables, charts, images
        if name.startswith("__"):
            raise AttributeError(name)
        from unittest.mock import MagicMock
        return MagicMock()
"""
