#include "bind/bind.h"

NB_MODULE(_native, m) {
    m.doc() =
        "Kernels, disk reader and slot memory: bytes, pointers and shapes; no models, no policy.";
    flashmoe::bind_core(m);
    flashmoe::bind_codec(m);
    flashmoe::bind_linear(m);
    flashmoe::bind_layers(m);
    flashmoe::bind_probe(m);
    flashmoe::bind_stream(m);
}
