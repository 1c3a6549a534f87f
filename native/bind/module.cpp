#include "bind/bind.h"

NB_MODULE(_native, m) {
    // At exit Python leaves objects of uncaught errors alive; that is no leak of ours.
    nanobind::set_leak_warnings(false);
    m.doc() =
        "Kernels, disk reader and slot memory: bytes, pointers and shapes; no models, no policy.";
    flashmoe::bind_core(m);
    flashmoe::bind_codec(m);
    flashmoe::bind_linear(m);
    flashmoe::bind_layers(m);
    flashmoe::bind_residents(m);
    flashmoe::bind_parts(m);
    flashmoe::bind_probe(m);
    flashmoe::bind_landing(m);
    flashmoe::bind_stream(m);
}
