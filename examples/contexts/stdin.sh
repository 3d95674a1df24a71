#!/usr/bin/env bash
# No bucket at all: the context goes through kubectl to the pod's standard input. stdin.sh FOLDER DESTINATION
# The secret `registry` and the image are those of k8s/.
set -euo pipefail
folder=${1:?which folder} destination=${2:?where to push}
tar -C "$folder" -czf - . | kubectl run "kiln-$$" --rm --stdin --quiet --restart=Never --image=kiln/executor:latest \
  --overrides='{
    "apiVersion": "v1",
    "spec": {
      "containers": [{
        "name": "kiln-'$$'", "image": "kiln/executor:latest", "stdin": true, "stdinOnce": true,
        "args": ["--context=tar://stdin", "--destination='"$destination"'"],
        "volumeMounts": [
          {"name": "scratch", "mountPath": "/kaniko/scratch"},
          {"name": "registry", "mountPath": "/kaniko/.docker", "readOnly": true}]
      }],
      "volumes": [
        {"name": "scratch", "emptyDir": {}},
        {"name": "registry", "secret": {"secretName": "registry", "items": [{"key": ".dockerconfigjson", "path": "config.json"}]}}]
    }
  }'
