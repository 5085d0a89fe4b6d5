"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Time limits would fail on a machine that has other work to do.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
