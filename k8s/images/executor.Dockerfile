# The executor: Kiln and nothing else. `make images` builds this with Kiln itself; the context is made by
# integration/scripts/images, because git keeps neither the binary nor the mode of a directory:
#
#   files/kaniko/executor, files/kaniko/warmer   one static binary under two names
#   files/kaniko/ssl/certs                       the CA bundle
#   files/kaniko                                 0777, so that a pod that runs as another user can work here
#   files/etc/kiln-image                         the marker: rung root may overwrite the files of this image, and of no other
#   files/etc/nsswitch.conf                      hosts before DNS
FROM scratch
COPY files/ /
ENV HOME=/root \
    USER=root \
    PATH=/usr/local/bin:/kaniko \
    SSL_CERT_DIR=/kaniko/ssl/certs \
    DOCKER_CONFIG=/kaniko/.docker/
WORKDIR /workspace
ENTRYPOINT ["/kaniko/executor"]
