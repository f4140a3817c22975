FROM busybox
WORKDIR /srv
ONBUILD ARG PORT=80
ONBUILD COPY . /srv/
ONBUILD RUN echo "port $PORT" > /srv/port
CMD ["cat", "/srv/port", "/srv/page"]
