"""Studies on CamVid: the U-Net recipe, its uncertainties, the architectures and a CRF."""
