"""The processes of one run: ranks, meshes, launching, liveness, and which rank failed first."""
