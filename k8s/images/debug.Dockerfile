# The executor with a shell, for CI systems that run scripts in the container, and for looking around. `executor` is the
# image made before. /busybox is a volume so that rung root, which empties the file system, leaves the shell alone.
FROM executor
COPY busybox/ /
ENV PATH=/usr/local/bin:/kaniko:/busybox
VOLUME /busybox
ENTRYPOINT ["/kaniko/executor"]
