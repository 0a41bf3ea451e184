"""A proxy on the developer's machine whose connections are made by a pod."""
