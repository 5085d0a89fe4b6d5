"""The one way to run: processes are started, each does a task, and a row is left whatever happens."""
