// Permission to use the tile registers of AMX.
#pragma once

namespace flashmoe::amx {

// True if the processor has AMX-TILE and AMX-INT8 and the system lets this process use them.
bool enable();

}  // namespace flashmoe::amx
