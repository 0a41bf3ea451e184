"""Converts a directory of Kubernetes manifests (file contents, already read) into an `Inventory`.

Every invalid document yields one `ManifestError` with file, document, line and field, and does not affect valid ones.
Kinds that Sidestep does not read are ignored, so that a directory of ordinary manifests works unchanged. Files are
processed in the order of their names. Of two objects with the same identity the first is kept; the second yields an
error that names both positions.

Each file is read separately (`load_file`), in a child of the daemon, because it may contain the data of a Secret.
`combine` joins the objects of all files. Its result contains no file text and no Secret data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from sidestep.config import objects, yaml_documents
from sidestep.config.field_error import FieldError
from sidestep.config.locations import parse_location
from sidestep.config.ownership import link_owners
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory import DEFAULT_NAMESPACE, ConfigMap, Inventory, Secret
from sidestep.model.pod import PodKey, Service
from sidestep.model.workload import Workload, WorkloadKey

MAX_FILES = 1000
"""Manifest files of a directory."""
MAX_TOTAL = 32 * 1024 * 1024
"""Characters of all files together."""
MAX_ERRORS = 50
"""Errors reported individually for one file; further ones are counted."""

_POLICIES = ("InspectionPolicy", "ClusterInspectionPolicy")


class ManifestError(msgspec.Struct, frozen=True):
    """An error in one document.

    `document` and `line` are 1-based; 0 when the error concerns the whole file. `subject` is the object ("Pod
    shop/orders") as far as it is known, `field` the path of the field; both may be empty.
    """

    file: str
    document: int
    line: int
    subject: str
    field: str
    reason: str

    def __str__(self) -> str:
        where = [self.file]
        where += [f"document {self.document}"] if self.document else []
        where += [f"line {self.line}"] if self.line else []
        what = ": ".join(part for part in (self.subject, self.field, self.reason) if part)
        return f"{', '.join(where)}: {what}"

    def condition(self) -> Condition:
        """The condition that `sidestep status` shows for this error."""
        return Condition(ConditionType.MANIFEST_INVALID, f"manifest {self.file}", str(self))


class Declared(msgspec.Struct, frozen=True):
    """One object of a file. `place` describes its position in words, `at` is the position for an error."""

    subject: str
    object: objects.Converted
    place: str
    at: ManifestError


class FileObjects(msgspec.Struct, frozen=True):
    """The objects that one file declares. Contains no file text and no Secret data."""

    size: int = 0
    """Size of the file: bytes when it was read as bytes, otherwise characters."""
    declared: tuple[Declared, ...] = ()
    errors: tuple[ManifestError, ...] = ()


def load_files(files: Mapping[str, str | bytes]) -> dict[str, FileObjects]:
    """Read each file separately, in the order of their names. Files beyond MAX_FILES or MAX_TOTAL are not read."""
    loaded: dict[str, FileObjects] = {}
    total = 0
    for count, name in enumerate(sorted(files)):
        total += len(files[name])
        if count == MAX_FILES or total > MAX_TOTAL:
            loaded[name] = FileObjects(size=len(files[name]))
            break
        loaded[name] = load_file(name, files[name])
    return loaded


def load_file(name: str, content: str | bytes) -> FileObjects:
    """Return the objects that one file declares. Never raises: errors are part of the result."""
    gathered = _FileResult()
    try:
        for document in yaml_documents.split(_text(content)):
            _load_document(name, document, gathered)
    except yaml_documents.YamlError as error:
        gathered.errors.append(ManifestError(name, 0, error.line, "", "", error.reason))
    return FileObjects(len(content), tuple(gathered.declared), tuple(gathered.errors))


def keep_policies(read: FileObjects, before: FileObjects) -> FileObjects:
    """Return what a file declares, with the policies that it declared before if a document of it is illegible now.

    Nobody knows which object such a document was meant to be, and a typing error must not end a policy.
    """
    if all(error.subject for error in read.errors):
        return read
    subjects = {each.subject for each in read.declared}
    kept = [
        each
        for each in before.declared
        if isinstance(each.object, InspectionPolicy | objects.InvalidPolicy) and each.subject not in subjects
    ]
    return replace(read, declared=(*read.declared, *kept))


def secret_data(content: str | bytes, namespace: str, name: str) -> dict[str, bytes] | None:
    """Return the data of a Secret of a file, for the one-shot reader; None when the file has no such valid Secret."""
    documents = list(yaml_documents.split(_text(content)))
    # Documents that contain the name come first. The rest follow, because escapes can hide it.
    documents.sort(key=lambda document: name not in document.text or "Secret" not in document.text)
    for document in documents:
        try:
            value = yaml_documents.load(document)
        except yaml_documents.YamlError:
            continue
        for item, _ in _items(value):
            found = _secret_and_data(item)
            if found is not None and (found[0].namespace, found[0].name) == (namespace, name):
                return found[1]
    return None


def _secret_and_data(value: object) -> tuple[Secret, dict[str, bytes]] | None:
    if not isinstance(value, dict) or (value.get("apiVersion"), value.get("kind")) != ("v1", "Secret"):
        return None
    try:
        return objects.secret_and_data(value)
    except FieldError:
        return None


def combine(files: Mapping[str, FileObjects]) -> tuple[Inventory, tuple[ManifestError, ...]]:
    """Return the inventory of all files together, and all errors."""
    joined = _InventoryBuilder()
    total = 0
    for count, name in enumerate(sorted(files)):
        total += files[name].size
        if count == MAX_FILES or total > MAX_TOTAL:
            reason = f"more than {MAX_FILES} files or {MAX_TOTAL // 2**20} MiB: this file and the rest are not read"
            joined.errors.append(ManifestError(name, 0, 0, "", "", reason))
            break
        errors = list(files[name].errors)
        errors += [error for each in files[name].declared if (error := joined.add(each)) is not None]
        joined.errors += _limit_errors(name, sorted(errors, key=lambda error: error.document))
    return joined.inventory(), tuple(joined.errors)


def _limit_errors(name: str, errors: list[ManifestError]) -> list[ManifestError]:
    """Keep the first MAX_ERRORS errors of a file and replace the rest by their number."""
    excess = errors[MAX_ERRORS:]
    if not excess:
        return errors
    reason = f"{len(excess)} more errors in this file"
    return [*errors[:MAX_ERRORS], ManifestError(name, 0, excess[0].line, "", "", reason)]


class _Position(msgspec.Struct, frozen=True):
    """Position of an object in a file. `prefix` is the path of an item within a List."""

    file: str
    lines: yaml_documents.LineIndex
    prefix: str = ""

    def error(self, subject: str, path: str, reason: str) -> ManifestError:
        full = ".".join(part for part in (self.prefix, path) if part)
        shown = full if full.isprintable() else repr(full)
        return ManifestError(self.file, self.lines.document.number, self.lines.of(full), subject, shown, reason)

    def __str__(self) -> str:
        return f"{self.file}, document {self.lines.document.number}" + (f", {self.prefix}" if self.prefix else "")


@dataclass(slots=True)
class _FileResult:
    """Objects and errors read from a file so far."""

    declared: list[Declared] = field(default_factory=list)
    errors: list[ManifestError] = field(default_factory=list)

    def add(self, subject: str, converted: objects.Converted, place: _Position) -> None:
        """Add an object."""
        if isinstance(converted, Secret):
            converted = replace(converted, file=place.file)
        self.declared.append(Declared(subject, converted, str(place), place.error(subject, "", "")))


@dataclass(slots=True)
class _InventoryBuilder:
    """Joins the objects of all files into an inventory."""

    pods: dict[PodKey, objects.PodObject] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    secrets: dict[tuple[str, str], Secret] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], ConfigMap] = field(default_factory=dict)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    namespace_labels: dict[str, Mapping[str, str]] = field(default_factory=dict)
    nodes: dict[str, Mapping[str, str]] = field(default_factory=dict)
    node_addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    workloads: dict[WorkloadKey, Workload] = field(default_factory=dict)
    policies: list[InspectionPolicy] = field(default_factory=list)
    invalid_policies: dict[tuple[str, str], str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    errors: list[ManifestError] = field(default_factory=list)

    def add(self, each: Declared) -> ManifestError | None:
        """Add an object. Returns an error when one of the same identity was added before."""
        if each.subject in self.places:
            reason = f"the same object stands in {self.places[each.subject]}, which is used"
            return replace(each.at, reason=reason)
        self.places[each.subject] = each.place
        match converted := each.object:
            case objects.PodObject():
                self.pods[converted.pod.key] = converted
            case Service():
                self.services.append(converted)
            case Secret():
                self.secrets[converted.namespace, converted.name] = converted
            case ConfigMap():
                self.config_maps[converted.namespace, converted.name] = converted
            case objects.NamespaceObject():
                self.namespaces[converted.name] = converted.annotations
                self.namespace_labels[converted.name] = converted.labels
            case objects.NodeObject():
                self.nodes[converted.name] = converted.annotations
                self.node_addresses[converted.name] = converted.addresses
            case Workload():
                self.workloads[converted.key] = converted
            case InspectionPolicy():
                self.policies.append(converted)
            case objects.InvalidPolicy():
                self.invalid_policies[converted.namespace, converted.name] = converted.reason
        return None

    def inventory(self) -> Inventory:
        """Return the inventory, with the owners of pods linked."""
        pods = {key: link_owners(each.pod, each.owners, self.workloads) for key, each in self.pods.items()}
        policies = tuple(sorted(self.policies, key=lambda policy: policy.order))
        named = {(each.namespace, each.name) for policy in policies for each in policy.texts}
        return Inventory(
            pods=pods,
            services=tuple(self.services),
            secrets=self.secrets,
            namespaces=self.namespaces,
            nodes=self.nodes,
            node_addresses=self.node_addresses,
            workloads=self.workloads,
            policies=policies,
            invalid_policies=self.invalid_policies,
            namespace_labels=self.namespace_labels,
            config_maps={key: each for key, each in self.config_maps.items() if key in named},
        )


def _text(content: str | bytes) -> str:
    if len(content) > yaml_documents.MAX_TEXT:
        raise yaml_documents.YamlError(f"larger than {yaml_documents.MAX_TEXT // 1024} KiB", 0)
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise yaml_documents.YamlError("not UTF-8 text", line) from None


def _load_document(name: str, document: yaml_documents.Document, gathered: _FileResult) -> None:
    place = _Position(name, yaml_documents.LineIndex(document))
    try:
        value = yaml_documents.load(document)
    except yaml_documents.YamlError as error:
        gathered.errors.append(ManifestError(name, document.number, error.line, "", "", error.reason))
        return
    if value is None:
        return
    for item, prefix in _items(value):
        _load_object(item, replace(place, prefix=prefix), gathered)


def _items(value: object) -> Iterator[tuple[object, str]]:
    """Yield the object itself, or the items of a List (as `kubectl get -o yaml` writes) with their paths."""
    if isinstance(value, dict) and value.get("apiVersion") == "v1" and value.get("kind") == "List":
        items = value.get("items")
        if isinstance(items, list):
            yield from ((item, f"items[{index}]") for index, item in enumerate(items))
            return
    yield value, ""


def _load_object(value: object, place: _Position, gathered: _FileResult) -> None:
    if not isinstance(value, dict):
        gathered.errors.append(place.error("", "", "not a Kubernetes object: a mapping with apiVersion and kind"))
        return
    version, kind = value.get("apiVersion"), value.get("kind")
    for key, text in (("apiVersion", version), ("kind", kind)):
        if not isinstance(text, str) or not text:
            gathered.errors.append(place.error("", key, "is missing or not a text: is this a Kubernetes object?"))
            return
    convert = objects.converter(str(version).rpartition("/")[0], str(kind))
    if convert is None:
        if kind == "List" and version == "v1":
            gathered.errors.append(place.error("List", "items", "must be a list of objects, none of them a List"))
        return
    subject = _subject(str(kind), value)
    try:
        converted = convert(value)
        if isinstance(converted, objects.PodObject):
            pod = converted.pod
            converted = replace(converted, pod=replace(pod, location=parse_location(pod.annotations, ended=pod.ended)))
    except FieldError as error:
        if convert is objects.CONFIG_MAP:
            return  # most of them belong to others, who may write what they like
        gathered.errors.append(place.error(subject, error.path, error.reason))
        _add_invalid_policy(str(kind), subject, f"{error.path}: {error.reason}", place, gathered)
    except ConfigurationError as error:
        gathered.errors.append(place.error(subject, "", str(error)))
    else:
        gathered.add(subject, converted, place)


def _add_invalid_policy(kind: str, subject: str, reason: str, place: _Position, gathered: _FileResult) -> None:
    """Note that a policy of this name is still there: its last good version stays in force."""
    if kind in _POLICIES and subject != kind:
        namespace, _, name = subject.removeprefix(f"{kind} ").rpartition("/")
        gathered.add(subject, objects.InvalidPolicy(namespace, name, reason), place)


def _subject(kind: str, value: Mapping[str, object]) -> str:
    """Return `Pod shop/orders`, as far as it can be read from an unvalidated object."""
    metadata = value.get("metadata")
    name, namespace = (metadata.get("name"), metadata.get("namespace")) if isinstance(metadata, dict) else (None, None)
    if not isinstance(name, str) or not name.isprintable() or len(name) > 253:
        return kind
    if kind in {"Namespace", "Node", _POLICIES[1]}:
        return f"{kind} {name}"
    usable = isinstance(namespace, str) and namespace.isprintable() and 0 < len(namespace) <= 253
    return f"{kind} {namespace if usable else DEFAULT_NAMESPACE}/{name}"
