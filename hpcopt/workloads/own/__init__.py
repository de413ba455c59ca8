"""A network and data of anybody's, named in a job: no class of hpcopt's is needed."""
