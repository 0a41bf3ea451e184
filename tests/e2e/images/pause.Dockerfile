# What the first container of every pod runs: nothing, until it is told to end.
ARG APP
FROM ${APP} AS app
FROM scratch
COPY --from=app /usr/bin/catatonit /pause
ENTRYPOINT ["/pause", "-P"]
