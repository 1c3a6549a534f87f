// Handles of layer parts: checked once, so that a call in the token loop converts no array.
#pragma once

#include <chrono>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/matrix.h"
#include "flashmoe/pool.h"

namespace flashmoe {

// Float rows [rows, cols] of an array that it keeps alive.
struct FloatRows {
    Out array;
    float* data;
    int64_t rows, cols;

    explicit FloatRows(const Out& from)
        : array(from),
          data(output<float>("FloatRows", "array", from, {kAny, kAny})),
          rows(extent(from, 0)),
          cols(extent(from, 1)) {}
};

inline void expect_rows(const char* op, const char* name, const FloatRows& view, int64_t rows,
                        int64_t cols) {
    if (view.rows != rows || view.cols != cols)
        mismatch(op, name, shape_text({rows, cols}), shape_text({view.rows, view.cols}));
}

// The vectors and matrices that a part was made from, kept alive beside it.
struct Kept {
    std::vector<In> vectors;
    std::vector<Matrix> matrices;

    const float* vector(const char* op, const char* name, const In& array, Shape shape) {
        vectors.push_back(array);
        return input<float>(op, name, array, shape);
    }
    // Throws unless it is [rows, cols]; kAny fits every extent.
    MatrixView matrix(const char* op, const char* name, const Matrix& matrix, int64_t rows,
                      int64_t cols) {
        const MatrixView& w = matrix.view;
        if ((rows != kAny && w.rows != rows) || (cols != kAny && w.cols != cols))
            mismatch(op, name, shape_text({rows, cols}), shape_text({w.rows, w.cols}));
        matrices.push_back(matrix);
        return w;
    }
};

// Runs body without the GIL -> seconds that it took.
template <typename Body>
double timed(const Body& body) {
    const nb::gil_scoped_release unlocked;
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void bind_mixer_parts(nb::module_& m);
void bind_moe_parts(nb::module_& m);

}  // namespace flashmoe
