"""The methods, and which of them minimise which problem."""

from paralab.convex.gradient import GD
from paralab.convex.method import Method
from paralab.convex.newton import NEWTON
from paralab.convex.proximal import FISTA, ISTA, SUBGRADIENT
from paralab.convex.stochastic import MINIBATCH, SGD
from paralab.convex.svrg import SVRG

LOGISTIC: dict[str, Method] = {method.name: method for method in (GD, SGD, MINIBATCH, SVRG, NEWTON)}
DENOISING: dict[str, Method] = {method.name: method for method in (SUBGRADIENT, ISTA, FISTA)}
METHODS = LOGISTIC | DENOISING
