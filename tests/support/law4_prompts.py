"""Sixty beginnings of texts: Korean, English, mixed and code."""

KOREAN = """대한민국의 수도는
오늘 날씨가 좋아서 우리는
조선 시대의 과학 기술 가운데 가장
김치를 담그려면 먼저 배추를
인공지능이 사회에 미치는 영향은
세종대왕은 훈민정음을
서울에서 부산까지 기차로
경제 성장률이 지난 분기보다
그는 책상 위에 놓인 편지를 읽고
한국어의 높임법은
봄이 오면 산과 들에
병원에 가기 전에 확인해야 할
프로그램을 처음 배우는 사람에게
바다와 맞닿은 작은 마을에서
정부는 오늘 새로운 정책을 발표하며
아이들이 운동장에서
커피를 마시면서 신문을
지구의 기온이 올라가면
박물관에 전시된 유물은
첫째, 물을 충분히 마신다. 둘째,""".splitlines()
ENGLISH = """The capital of France is
Once upon a time in a small village
The most important property of a prime number
To bake a loaf of bread, first
In 1969, the first astronauts
Machine learning models are trained by
The old lighthouse keeper looked at
Water boils at 100 degrees, while
Dear hiring manager, I am writing to
According to the report, the economy
She opened the door and
The difference between a virus and a bacterium
Photosynthesis is the process by which
Ladies and gentlemen, welcome to
The stock market closed lower on""".splitlines()
MIXED = """Python에서 list와 tuple의 차이는
이번 meeting에서는 roadmap을
GPU memory가 부족할 때는 batch size를
Seoul (서울) is the capital of
New York에서 출발한 비행기는 JFK
API key를 환경 변수에 저장하면
"Hello"는 한국어로 "안녕하세요"이고, "Thank you"는
iPhone 15 Pro의 가격은 $999부터
Transformer 모델의 attention은
BTS의 노래 Dynamite는
2024년 1분기 매출은 전년 대비 12.5%
RESTful API의 status code 404는
Docker container를 실행하려면 docker run
K-pop과 K-drama의 global
Translate to Korean: Good morning =""".splitlines()
CODE = """def fibonacci(n):\\n    if n <
import numpy as np\\n\\ndef normalize(x):\\n
for (int i = 0; i <
SELECT name, COUNT(*) FROM users
class Stack:\\n    def __init__(self):
#!/bin/bash\\nset -e\\nfor file in
const response = await fetch(
<html>\\n<head>\\n<title>
public static void main(String[]
# 두 수의 합을 구하는 함수\\ndef add(a, b):""".splitlines()
KINDS = [[text.replace("\\n", "\n") for text in kind] for kind in (KOREAN, ENGLISH, MIXED, CODE)]
PROMPTS = [text for kind in KINDS for text in kind]
FEW = [text for kind in KINDS for text in kind[:3]]
