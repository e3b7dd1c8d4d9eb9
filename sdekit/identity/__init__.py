r"""What decides a result, as a digest: stores of finished work ask by it whether a result is still the one asked for.

``identify`` takes a thing apart down to numbers, names and code, and hashes them: tensors by dtype, shape and bytes, a
module by its class, attributes, buffers and hooks, a function by its bytecode, defaults, closure and the globals it
reads, an object by its class and attributes. Code of Python, of installed packages and of this one counts by its name,
its version and the file it is in; all other code by what it does. The digest is the same in every process.

Left out, since they decide nothing: where tensors lie, ``requires_grad``, properties and cached properties, the counter
``nfe`` of a model, and whether a network is compiled. What has a state that cannot be read (a generator,
an open file, a lock) or draws from one (a random generator) has no digest: ``identify`` raises ``UnidentifiedError``.

``behaviour`` catches what no walk sees, such as an environment variable that a network reads: what a model computes at
a few fixed points.
"""

from sdekit.identity.behaviour import STATES, Behaviour, alike, behaviour, uncounted
from sdekit.identity.parts import UnidentifiedError
from sdekit.identity.walk import identify

__all__ = ["STATES", "Behaviour", "UnidentifiedError", "alike", "behaviour", "identify", "uncounted"]
