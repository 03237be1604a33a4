# SPDX-License-Identifier: Apache-2.0
"""A Helm chart of a pipeline: the manifests of `deploy kubernetes`, with what differs between clusters as values.

Each value is written into its template as JSON, which is YAML: `image: {{ .Values.image | toJson }}`. With the values
that are in the chart, the templates give exactly the manifests of `deploy kubernetes`.
"""

from __future__ import annotations

import re

import zpptool
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.kubernetes.labels import Object
from zpptool.deploy.kubernetes.manifests import manifest_objects
from zpptool.deploy.kubernetes.source import split_source
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import stage_units

POD_VALUES = (
    "nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "priorityClassName", "runtimeClassName",
    "imagePullSecrets",
)  # fmt: skip
"""Fields of a stage's pod that are values; those that are not set are null, which Kubernetes takes as not given."""
_MARK = re.compile(r"""(?P<quote>['"]?)@@(?P<path>[A-Za-z0-9.]+)@@(?P=quote)""")
_BRACES = "{{"


def helm_files(deployment: Deployment) -> dict[str, str]:
    """Return the files of the chart, by file name.

    Raises:
        ZppError: (USAGE) a pod cannot read the source; (INVALID) a link does not use tcp.
    """
    applied, separate = manifest_objects(deployment, stage_units(deployment, split_source(deployment)))
    values: Object = {"stages": {}}
    files = {
        f"templates/{name}": _template([_with_values(item, values) for item in items])
        for name, items in applied.items()
    }
    optional = {name.rpartition("/")[2]: items for name, items in separate.items()}
    for name, items in optional.items():
        value = name.removesuffix(".yaml")
        values[value] = {"enabled": False}
        condition = f"{_BRACES} if .Values.{value}.enabled }}}}\n"
        files[f"templates/{name}"] = f"{condition}{_template(items)}{_BRACES} end }}}}\n"
    files["values.yaml"] = documents([values])
    files["Chart.yaml"] = documents([_chart(deployment)])
    return files


def _with_values(item: Object, values: Object) -> Object:
    """Return an object whose fields that are values are marked, and put the values where they belong."""
    if item["kind"] != "StatefulSet":
        return item
    name = f"stage{item['spec']['template']['metadata']['labels']['zpptool/stage']}"
    spec = item["spec"]
    pod = spec["template"]["spec"]
    stage = pod["containers"][0]
    own: Object = {"image": stage["image"], "resources": stage["resources"]}
    own |= {key: pod.get(key) for key in POD_VALUES}
    marked = {**pod, **{key: _mark(f"stages.{name}.{key}") for key in POD_VALUES}}
    marked["containers"] = [{**stage, **{key: _mark(f"stages.{name}.{key}") for key in ("image", "resources")}}]
    marked["initContainers"] = [{**one, "image": _mark(f"stages.{name}.image")} for one in pod["initContainers"]]
    claims = []
    for claim in spec["volumeClaimTemplates"]:
        own["storageClassName"] = claim["spec"].get("storageClassName")
        own["storage"] = claim["spec"]["resources"]["requests"]["storage"]
        requests = {"requests": {"storage": _mark(f"stages.{name}.storage")}}
        storage = {"storageClassName": _mark(f"stages.{name}.storageClassName"), "resources": requests}
        claims.append({**claim, "spec": {**claim["spec"], **storage}})
    values["stages"][name] = own
    template = {**spec["template"], "spec": marked}
    return {**item, "spec": {**spec, "template": template, "volumeClaimTemplates": claims}}


def _mark(path: str) -> str:
    return f"@@{path}@@"


def _template(items: list[Object]) -> str:
    """Return objects as a template: text in braces is literal, marks become the values that they name."""
    text = documents(items).replace(_BRACES, '{{ "{{" }}')
    return _MARK.sub(lambda found: f"{_BRACES} .Values.{found['path']} | toJson }}}}", text)


def _chart(deployment: Deployment) -> Object:
    made = f"{len(deployment.plan.stages)} stages, plan {deployment.plan.digest[:16]}, made by zpptool deploy helm"
    return {
        "apiVersion": "v2",
        "name": deployment.name,
        "description": f"A pipeline of {made}.",
        "type": "application",
        "version": zpptool.__version__,
        "appVersion": zpptool.__version__,
    }
