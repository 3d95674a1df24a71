#!/usr/bin/env bash
# Packs a folder and puts it where an executor pod finds it: tar-and-upload.sh FOLDER gs://BUCKET/NAME.tar.gz, or
# s3://BUCKET/NAME.tar.gz, or https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME.tar.gz (with a SAS token in AZURE_SAS).
# Then: kubectl apply -f gcs.yaml, s3.yaml or azure.yaml, whose --context is the same address.
set -euo pipefail
folder=${1:?which folder} to=${2:?where to}
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
tar -C "$folder" -czf "$archive" .
case $to in
  gs://*) gcloud storage cp "$archive" "$to" ;;
  s3://*) aws s3 cp "$archive" "$to" ;;
  https://*.blob.core.windows.net/*)
    curl --fail --silent --show-error --upload-file "$archive" --header "x-ms-blob-type: BlockBlob" "$to?${AZURE_SAS:?}"
    ;;
  *) echo "$to: neither gs://, s3:// nor a blob of Azure's" >&2; exit 1 ;;
esac
