// A reverse proxy as one writes it with Go's standard library: TLS to TLS, one header filter, keep-alive, HTTP/2 by
// ALPN on both sides. A peer for the benchmarks; it does the same job as the pod proxy.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	listen, certificate, key, authority, app, name := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]
	pem, err := os.ReadFile(authority)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	target, err := url.Parse("https://" + app)
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, ServerName: name},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 1000,
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Dev") == "ada" {
			http.Error(w, "handler", http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	log.Fatal(http.ListenAndServeTLS(listen, certificate, key, handler))
}
