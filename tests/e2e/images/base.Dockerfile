# A minimal Debian made by debootstrap: it stands for docker.io/library/debian:trixie-slim, without a registry.
FROM scratch
ADD base.tar /
CMD ["bash"]
