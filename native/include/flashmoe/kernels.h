// One table of kernels per instruction set: a complete scalar baseline that each faster set
// overwrites.
#pragma once

#include <string>
#include <vector>

#include "cpu/attention/attention.h"
#include "cpu/blocks/blocks.h"
#include "cpu/codebook/codebook.h"
#include "cpu/codec/codec.h"
#include "cpu/delta/delta.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/linear/linear.h"
#include "cpu/mxfp4/mxfp4.h"
#include "cpu/norm/norm.h"
#include "cpu/probe/probe.h"
#include "cpu/rope/rope.h"
#include "cpu/routing/routing.h"

namespace flashmoe {

struct Kernels {
    std::string isa;
    CodecKernels codec;
    LinearKernels linear;
    NormKernels norm;
    RopeKernels rope;
    AttentionKernels attention;
    DeltaKernels delta;
    RoutingKernels routing;
    ElementwiseKernels elementwise;
    ProbeKernels probe;
};

// The table in use. Chosen once, by what the CPU says, on first use; select_isa replaces it.
const Kernels& kernels();

// The instruction sets that this machine can run, slowest first: "scalar", then "avx2",
// "avx512" (F, BW, DQ, VL and VNNI) and "amx" (that and AMX-TILE, AMX-INT8), or "neon" (ARM with
// dot product).
std::vector<std::string> available_isas();

// name: "auto" or one of available_isas(); throws std::invalid_argument otherwise.
// The choice is the process's: kernels that other threads run follow it.
void select_isa(const std::string& name);

}  // namespace flashmoe
