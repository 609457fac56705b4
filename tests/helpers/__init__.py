"""What the tests share. Each test names what it needs: ``from tests.helpers.processes import reap``."""
