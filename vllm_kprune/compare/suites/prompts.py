"""Korean and English beginnings of texts, which both models continue."""

__all__ = ["PROMPTS", "SAMPLE_PROMPTS"]

# As many in each language: `latency` pairs them off, and refuses lists of different lengths.
PROMPTS: dict[str, tuple[str, ...]] = {
    "ko": (
        "대한민국의 수도는 서울이며, 서울은",
        "세종대왕은 훈민정음을 만들어",
        "김치를 담그려면 먼저 배추를",
        "봄이 오면 산과 들에는",
        "인공지능이 우리 생활에 미치는 영향은",
        "지구의 기온이 계속 올라가면",
    ),
    "en": (
        "The capital of South Korea is Seoul, and it is",
        "Once upon a time, in a small village by the sea,",
        "To bake a loaf of bread, you first need to",
        "The difference between a virus and a bacterium is that",
        "Machine learning models are trained by",
        "When the temperature of the Earth keeps rising,",
    ),
}
# `kprune demo` shows one of each language side by side.
SAMPLE_PROMPTS = tuple(texts[0] for texts in PROMPTS.values())
