"""Use the embedded library, alone and beside mahal itself."""

import embedded_cholesky
import numpy as np

rng = np.random.default_rng(0)
factors = rng.standard_normal((50, 12, 30))
matrices = factors @ factors.swapaxes(1, 2)
found = embedded_cholesky.log_determinants(matrices)
wanted = np.linalg.slogdet(matrices)[1]
np.testing.assert_allclose(found, wanted, rtol=1e-12)
assert np.isnan(embedded_cholesky.log_determinants(-matrices)).all()

try:
    embedded_cholesky.log_determinants(matrices[:, :5])
except ValueError as error:
    assert "cholesky: a: must have shape" in str(error)  # noqa: PT017
else:
    raise AssertionError("a batch of matrices that are not square was taken")

import mahal  # noqa: E402

assert mahal.__version__ == embedded_cholesky.version()
print("embedding works: mahal", mahal.__version__)
