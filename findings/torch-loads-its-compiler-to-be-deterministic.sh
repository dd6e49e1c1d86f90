#!/usr/bin/env bash
# Of two public ways to ask torch for deterministic algorithms one loads the compiler, in programs that compile nothing.
#
# Versions: torch==2.13.0, Python 3.11
# Expected: use_deterministic_algorithms(True) sets a flag, as set_deterministic_debug_mode("error") does.
# Behaviour: the first imports torch._inductor, and with it torch._dynamo: hundreds of modules more, and as much
# processor time again as `import torch` (1.15 s and 1.15 s where this was seen; the second call took 0.00 s). Each
# short-lived process that predicts pays that. The flag, and the error of an operation without a deterministic way, are
# the same.
# Seen:
#   use_deterministic_algorithms: flag 2, compiler loaded True, over 200 modules more True
#   set_deterministic_debug_mode: flag 2, compiler loaded False, over 200 modules more False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/seen.py" <<'PY'
import sys

import torch

before = len(sys.modules)
if sys.argv[1] == "use_deterministic_algorithms":
    torch.use_deterministic_algorithms(True)
else:
    torch.set_deterministic_debug_mode("error")
loaded, more = "torch._inductor" in sys.modules, len(sys.modules) - before
flag = torch.get_deterministic_debug_mode()
print(f"{sys.argv[1]}: flag {flag}, compiler loaded {loaded}, over 200 modules more {more > 200}")
PY
cd "$folder"
diff <(for way in use_deterministic_algorithms set_deterministic_debug_mode; do venv/bin/python seen.py "$way"; done) - <<'SEEN'
use_deterministic_algorithms: flag 2, compiler loaded True, over 200 modules more True
set_deterministic_debug_mode: flag 2, compiler loaded False, over 200 modules more False
SEEN
echo "as described"
