"""Random deformations of images while they are gathered: turned, stretched, bent, thicker or thinner."""
