"""Checks each resource of a file of manifests against the schemas of Kubernetes, where what they do not know is a mistake,
and prints them as a list in JSON: kubernetes.py FILE"""

import json
import sys

import kubernetes_validate
import yaml

with open(sys.argv[1]) as file:
    resources = list(yaml.safe_load_all(file))
for resource in resources:
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
print(json.dumps(resources))
