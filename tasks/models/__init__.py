"""Language models: where they come from, what is trained of them, how they are talked to."""

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(  # told at every import; what it misses is not needed
    lambda record: "kernels-community" not in record.getMessage()
)
