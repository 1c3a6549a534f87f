// The table of affine and NVFP4 block formats; see src/flashmoe/quant/affine.py and nvfp4.py.
#pragma once

#define FLASHMOE_AFFINE_GROUPS(X, bits, scale)        \
    X(affine##bits##_##scale##_g32, 32, 4 * bits + 4) \
    X(affine##bits##_##scale##_g64, 64, 8 * bits + 4) \
    X(affine##bits##_##scale##_g128, 128, 16 * bits + 4)
#define FLASHMOE_ZERO_GROUPS(X, bits, scale)        \
    X(zero##bits##_##scale##_g32, 32, 4 * bits + 3) \
    X(zero##bits##_##scale##_g128, 128, 16 * bits + 3)
#define FLASHMOE_WIDE(X, bits) X(affine##bits##_f32_g32, 32, 4 * bits + 8)

#define FLASHMOE_AFFINE_FORMATS(X)     \
    FLASHMOE_AFFINE_GROUPS(X, 2, bf16) \
    FLASHMOE_AFFINE_GROUPS(X, 3, bf16) \
    FLASHMOE_AFFINE_GROUPS(X, 5, bf16) \
    FLASHMOE_AFFINE_GROUPS(X, 6, bf16) \
    FLASHMOE_AFFINE_GROUPS(X, 8, bf16) \
    FLASHMOE_AFFINE_GROUPS(X, 2, f16)  \
    FLASHMOE_AFFINE_GROUPS(X, 3, f16)  \
    FLASHMOE_AFFINE_GROUPS(X, 4, f16)  \
    FLASHMOE_AFFINE_GROUPS(X, 5, f16)  \
    FLASHMOE_AFFINE_GROUPS(X, 6, f16)  \
    FLASHMOE_AFFINE_GROUPS(X, 8, f16)  \
    FLASHMOE_WIDE(X, 2)                \
    FLASHMOE_WIDE(X, 3)                \
    FLASHMOE_WIDE(X, 4)                \
    FLASHMOE_WIDE(X, 5)                \
    FLASHMOE_WIDE(X, 6)                \
    FLASHMOE_WIDE(X, 8)                \
    FLASHMOE_ZERO_GROUPS(X, 4, bf16)   \
    FLASHMOE_ZERO_GROUPS(X, 8, bf16)   \
    FLASHMOE_ZERO_GROUPS(X, 4, f16)    \
    FLASHMOE_ZERO_GROUPS(X, 8, f16)

#define FLASHMOE_NVFP4_FORMATS(X)   \
    X(nvfp4_64, 64, 4 + 4 + 32)     \
    X(nvfp4_256, 256, 4 + 16 + 128) \
    X(nvfp4_div_64, 64, 4 + 4 + 32) \
    X(nvfp4_div_256, 256, 4 + 16 + 128)
