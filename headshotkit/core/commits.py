"""The commit of each hub repository that is downloaded."""

COMMITS: dict[str, str | None] = {
    "SG161222/RealVisXL_V5.0": "ac93e0dda1f6d448cae19bbfab8c5e720a5e48bc",
    "madebyollin/sdxl-vae-fp16-fix": "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "5d4cfe854c9a9a87939ff3653551c2b3c99a4356",
    "diffusers/controlnet-canny-sdxl-1.0-small": "edd85f64c5f87dfb6d73762949d9daca16389518",
    "ByteDance/SDXL-Lightning": "c9a24f48e1c025556787b0c58dd67a091ece2e44",
    "ByteDance/Hyper-SD": "bc08d970a87c74c71209491d64e3525845698863",
    "latent-consistency/lcm-lora-sdxl": "a18548dd4956b174ec5b0d78d340c8dae0a129cd",
    "black-forest-labs/FLUX.1-dev": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
    "black-forest-labs/FLUX.2-klein-base-4B": "a3b4f4849157f664bdbc776fd7453c2783562f4d",
    "Tongyi-MAI/Z-Image": "04cc4abb7c5069926f75c9bfde9ef43d49423021",
    "Salesforce/blip-image-captioning-large": "353689b859fcf0523410b1806dace5fb46ecdf41",
    "florence-community/Florence-2-base": "00921df66db728a9ceb750f5eca43e5c203a2051",
}
"""Hub id -> the commit that is downloaded, of bases, their other parts, few-step LoRAs and captioners.

None: no commit is pinned; the first download takes the newest and keeps it.
"""
