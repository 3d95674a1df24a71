# The warmer: the same files, another entry point. Built for `executor`, and for `debug`, which has a shell.
FROM executor
ENTRYPOINT ["/kaniko/warmer"]
