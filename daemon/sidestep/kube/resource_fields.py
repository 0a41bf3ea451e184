"""What all resources of Sidestep (sidestep.dev/v1alpha1) have in common: the group, and the metadata that is read."""

from __future__ import annotations

import msgspec

GROUP = "sidestep.dev"
VERSION = "v1alpha1"


class ResourceFields(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """Base struct: camelCase names; default values are not written."""


class MetadataFields(ResourceFields, frozen=True):
    """meta/v1 ObjectMeta: the fields that are read."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
